"""Child processes: started, asked, watched and ended."""
