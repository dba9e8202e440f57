"""Ranked lists in the formats that other trainers read, one file a format, raw logits throughout."""
