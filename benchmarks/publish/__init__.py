"""What publishing a network costs."""
