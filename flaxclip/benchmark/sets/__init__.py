"""Where data sets are: in a folder here, on the Hub, in copies of what is there."""
