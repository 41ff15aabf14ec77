"""APGA: a masking agent and a classifier of X-rays train each other (docs/apga.md)."""
