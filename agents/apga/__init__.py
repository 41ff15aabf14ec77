"""APGA (docs/apga.md)."""
