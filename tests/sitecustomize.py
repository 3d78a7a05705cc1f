"""Runs in every Python that tests start with this folder on its path."""

import torchvision_on_cpu

torchvision_on_cpu.install()
