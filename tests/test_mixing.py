"""Models between others: what lies between is computed, and what cannot is refused by the field."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxclip
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Mix, mix_models
from flaxclip.interop.export import copy_tokenizer, export
from flaxclip.mixing import mix, shares_of
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.weights import Weights
from tests.helpers.small_models import CLIP, GELU, RESNET, as_transformers, variables_of


def saved(folder, spec, variables):
    save_variables(folder, spec._asdict(), variables)
    return str(folder)


def flat(variables):
    return {name: np.asarray(x) for name, x in flatten_dict(variables, sep="/").items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three of one kind, the third of another library, and their variables."""
    root = tmp_path_factory.mktemp("mixing")
    spec, first = as_transformers(CLIP), variables_of(CLIP)
    others = [jax.tree.map(lambda x, n=n: jnp.cos(n * x), first) for n in (1, 2)]
    paths = [saved(root / "0", spec, first), saved(root / "1", spec, others[0])]
    export(spec, others[1], root / "2", "huggingface", overwrite=False)
    return [*paths, str(root / "2")], [first, *others]


@pytest.mark.parametrize("weight", [0.0, 0.25, None, 1.0])
def test_two_models_are_mixed_by_the_seconds_share(weight, models, tmp_path, capsys):
    (first, second, _), (a, b, _) = models
    mix_models(Mix((first, second), tmp_path / "out", weight))
    share = 0.5 if weight is None else weight
    found = flat(flaxclip.load(tmp_path / "out").variables)
    expected = {name: (1 - share) * x + share * flat(b)[name] for name, x in flat(a).items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
        assert found[name].dtype == np.float32
    if share in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, found, flat((a, b)[int(share)]))
    scale = float(np.exp(expected["params/logit_scale"]))
    out = capsys.readouterr().out
    assert f"{1 - share:g} x {first} + {share:g} x {second}, in float32" in out
    assert f"the logit scale, mixed in its logarithm, is {scale:.4g}" in out


def test_a_soup_of_several_whatever_their_format_is_their_mean(models, tmp_path):
    paths, variables = models
    mix_models(Mix(tuple(paths), tmp_path / "out"))
    found, each = flat(flaxclip.load(tmp_path / "out").variables), list(map(flat, variables))
    for name, value in found.items():
        mean = sum(np.float64(x[name]) for x in each) / 3
        np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-7, err_msg=name)


def test_of_a_resnet_statistics_are_mixed_and_it_is_said(tmp_path, capsys):
    first = variables_of(RESNET)
    paths = [
        saved(tmp_path / str(n), RESNET, jax.tree.map(lambda x, n=n: n * x, first)) for n in (1, 3)
    ]
    mix_models(Mix(tuple(paths), tmp_path / "out"))
    found = flat(flaxclip.load(tmp_path / "out").variables)
    for name, value in flat(first).items():
        np.testing.assert_allclose(found[name], 2 * value, rtol=1e-6, err_msg=name)
    assert "statistics of batch norms are mixed too" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"vision": GELU.model.vision}, "model.vision.activation: 'quick_gelu' -> 'gelu'"),
        (
            "preprocess",
            {"mean": (0.5, 0.5, 0.5)},
            r"preprocess.mean: \(0.48.*\) -> \(0.5, 0.5, 0.5\)",
        ),
        ("preprocess", {"resize": "squash"}, "preprocess.resize: 'shortest' -> 'squash'"),
        (
            "tokenizer",
            {"cleaning": "canonicalize"},
            "tokenizer.cleaning: 'lower' -> 'canonicalize'",
        ),
        ("model", {"init_logit_bias": -10.0}, "model.init_logit_bias: None -> -10.0"),
    ],
)
def test_models_of_different_kinds_are_refused_by_field(part, change, message, tmp_path):
    changed = dataclasses.replace(getattr(CLIP, part), **change)
    spec = CLIP._replace(**{part: changed})
    paths = (
        saved(tmp_path / "a", CLIP, variables_of(CLIP)),
        saved(tmp_path / "b", spec, variables_of(spec)),
    )
    with pytest.raises(InputError, match=f"are not models of one kind(.|\n)*{message}"):
        mix_models(Mix(paths, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_cleaning_that_is_said_is_that_of_the_tokenizer_that_says_nothing():
    said = CLIP._replace(tokenizer=TokenizerConfig(cleaning="lower"))
    weights = [Weights("", "", spec, lambda _: iter([("params/x", np.ones(2))]))
               for spec in (CLIP, said)]  # fmt: skip
    np.testing.assert_array_equal(mix("ab", weights, [0.5, 0.5])["params"]["x"], np.ones(2))
    other = CLIP._replace(tokenizer=TokenizerConfig(cleaning="whitespace"))
    weights.append(Weights("", "", other, lambda _: iter(())))
    with pytest.raises(InputError, match=r"tokenizer\.cleaning: 'lower' -> 'whitespace'"):
        mix("abc", weights, [0.5, 0.25, 0.25])


def test_a_vocabulary_that_is_gone_is_asked_for(tmp_path):
    """By all that write a workdir: nothing has opened it before, if models are mixed."""
    gone = TokenizerConfig("siglip", file=str(tmp_path / "gone" / "spiece.model"))
    with pytest.raises(InputError, match=r"cannot read the vocabulary in .*gone/spiece.model: No"):
        copy_tokenizer(CLIP._replace(tokenizer=gone), tmp_path)


def test_how_a_models_scale_began_is_no_difference(tmp_path):
    other = CLIP._replace(model=dataclasses.replace(CLIP.model, init_logit_scale=1.0))
    variables = variables_of(CLIP)
    paths = saved(tmp_path / "a", CLIP, variables), saved(tmp_path / "b", other, variables)
    mix_models(Mix(paths, tmp_path / "out", 0.5))
    found = flaxclip.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


@pytest.mark.parametrize(
    ("count", "weight", "message"),
    [(1, None, "1 model to mix"), (3, 0.5, "a weight, and 3 models"), (2, 1.5, "weight is 1.5"),
     (2, float("nan"), "weight is nan")],
)  # fmt: skip
def test_shares_that_cannot_be_are_refused(count, weight, message):
    with pytest.raises(InputError, match=message):
        shares_of(count, weight)
    assert shares_of(4, None) == [0.25] * 4


def test_a_model_that_is_mixed_is_not_overwritten(models, tmp_path):
    paths, _ = models
    with pytest.raises(InputError, match="holds the model itself"):
        mix_models(Mix(tuple(paths), tmp_path / ".." / "x" / paths[1], overwrite=True))
