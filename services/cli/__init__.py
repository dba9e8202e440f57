"""The `dualdistill` command."""
