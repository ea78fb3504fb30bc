"""Programs of the makefile, around the package: experiments, folders for Kaggle, pages, costs. Nothing imports them."""
