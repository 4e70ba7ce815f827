"""One reader a format: from files to what is found in them, before anything of it is checked."""
