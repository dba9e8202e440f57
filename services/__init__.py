"""The processes of dualdistill: the only code that knows HTTP, Ray or a database."""
