"""Methods of training, one file each; a file registers what it defines."""
