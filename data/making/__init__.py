"""How the pocket model is made: its anatomy, recipe, training and card. For a checkout only."""
