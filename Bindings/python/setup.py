from setuptools import setup

setup(cffi_modules=["build_varve.py:ffibuilder"])
