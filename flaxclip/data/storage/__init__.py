"""Files on disk and in object storage: requests, repeated and counted; a cache of byte ranges."""
