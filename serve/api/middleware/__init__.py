"""What happens to every HTTP request, whichever door it is for."""
