"""The SPARS experiment (docs/spars.md)."""
