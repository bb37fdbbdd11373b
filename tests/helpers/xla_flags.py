"""How XLA compiles in tests, and in the processes that they start.

LLVM's optimisation is switched off: compiling is most of the tests' time, and with it takes half
as long again. The XLA of JAX 0.10, Python 3.11's last, can still do without its fusion emitters,
which take two thirds of what is left; later ones have nothing else. `.ci/run` trains and measures
without these flags, as users do.
"""

from importlib.metadata import version

_JAX_0_10 = version("jaxlib").startswith("0.10.")
_EMITTERS = " --xla_cpu_use_fusion_emitters=false" if _JAX_0_10 else ""
ONE_DEVICE = f"--xla_backend_optimization_level=0{_EMITTERS}"
EIGHT_DEVICES = f"{ONE_DEVICE} --xla_force_host_platform_device_count=8"
