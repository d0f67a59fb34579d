"""Reads and writes weights of other projects: published ResNets and BERTs, SOHO."""
