"""Tar shards and nothing else.

format        what a shard is: schema, manifest, catalog, tar headers, image sizes
writing       shards and other files, written to a temporary name, synced and renamed
coordination  any number of workers that share the shards of a folder: claims, heartbeats, progress
order         the order of training samples, mixtures of sets, and how well they shuffle
reading       samples by position or in sequence, from folders and URLs; stock webdataset's adapter
tools         verify, repair, repack, index
"""
