"""Layouts of checkpoints that are already quantized: how each packs its codes, to code them again without a changed bit."""
