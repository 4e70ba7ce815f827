"""Any common detection data set as one kind of record, and the road from a record to a batch."""
