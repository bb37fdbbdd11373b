"""How XLA compiles in tests, and in the processes that they start.

LLVM's optimisation is switched off: compiling is most of the tests' time, and with it takes half
as long again. `.ci/run` trains and measures without these flags, as users do.
"""

ONE_DEVICE = "--xla_backend_optimization_level=0"
EIGHT_DEVICES = f"{ONE_DEVICE} --xla_force_host_platform_device_count=8"
