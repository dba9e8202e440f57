"""The science of dualdistill: pure functions over Arrow tables and tensors, in the order the data flows."""
