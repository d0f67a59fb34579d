"""The formats: samples, manifests, catalogs and tar headers."""
