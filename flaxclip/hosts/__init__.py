"""The hosts of one run: how they join, agree, watch each other and stop."""
