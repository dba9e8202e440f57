"""Forward passes on one kind of hardware or runtime each, behind one protocol."""
