"""Where rows come from, and how predictions on them are judged."""
