"""ArrayRecord shards, whole on disk or by parts from object storage."""
