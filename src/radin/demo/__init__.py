"""A real pool on real data: a small network, pretrained once and fine-tuned many times, in under a minute."""

from radin.demo.pool import DemoPool, build

__all__ = ["DemoPool", "build"]
