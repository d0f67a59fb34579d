"""Tar shards and nothing else.

what a shard is     schema, write, manifest, head, catalog, shapes; atomic, which writes all files
making them         claims, heartbeat, pending, survey: any number of workers; account, earlier
the order           order, mixture; mixing and passage, which measure it
reading them        stream, on source, shards, store, read; cache and nameless for what is far away;
                    samples, for stock webdataset; activity, for who does what
taking care of them verify, repair, repack, index; scan, forward, picture and threads serve these
"""
