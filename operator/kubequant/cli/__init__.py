"""The `kubequant` command: a manifest on a laptop walks the road that it walks in a cluster."""
