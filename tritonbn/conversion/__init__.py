"""Whole models turned into ours: convert, convert_sync, and forwards recorded and fused."""
