import jax
import jax.numpy as jnp
import pytest

from flaxclip.numerics import matmul, similarity


@pytest.mark.parametrize("product", [matmul, lambda x, y: similarity(x, y.T)])
def test_products_are_float32_on_any_platform(product):
    """By the precision that is asked for: on CPUs the default is as exact."""
    x, y = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[5.0, 6.0], [7.0, 8.0]])
    (equation,) = (
        equation
        for equation in jax.make_jaxpr(product)(x, y).eqns
        if equation.primitive.name == "dot_general"
    )
    assert set(equation.params["precision"]) == {jax.lax.Precision.HIGHEST}
    assert product(x, y).tolist() == [[19, 22], [43, 50]]
