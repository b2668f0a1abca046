"""The part of the package that is compiled when it is installed; everything else is in pyproject.toml.

Without a C compiler the installation succeeds all the same: only what scores with models says that its engine is missing.
"""

from setuptools import Extension, setup

_FLAGS = ["-O2", "-std=c99", "-ffp-contract=off", "-fvisibility=hidden"]  # a fused multiply-add would change the last bit

setup(
    ext_modules=[Extension("mev.predict._engine", ["src/mev/predict/engine.c"], extra_compile_args=_FLAGS, libraries=["m"], optional=True)]
)
