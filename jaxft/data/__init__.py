"""From a file, folder or dataset to device batches: batch i is a pure function of (config, i).

In the order a batch travels: `sources` (random access to rows), `labels` (names to class numbers),
`text` and `images` (rows to arrays), `batching` (which example goes where, known in advance from
the lengths), `loader` (arrays for one step, read ahead in threads).
"""
