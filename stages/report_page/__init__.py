"""The report page: what a run's files say (`run_files`), as content for people (`content`, `tables`, `plots`), as HTML (`page`)."""
