"""How XLA compiles in tests, and in the processes that they start.

At LLVM's full optimisation, compiling, which is most of the tests' time, takes a third longer.
`.ci/run` trains and measures without these flags, as users do.
"""

ONE_DEVICE = "--xla_backend_optimization_level=1"
EIGHT_DEVICES = f"{ONE_DEVICE} --xla_force_host_platform_device_count=8"
