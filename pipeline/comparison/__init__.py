"""`pipeline compare`: the table of runs that share a cache, and any runs side by side from what they left in their folders."""
