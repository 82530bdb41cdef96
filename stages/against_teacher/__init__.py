"""Whether a cache says what its teacher says: some sequences go through the teacher once more (`pipeline cache verify`)."""
