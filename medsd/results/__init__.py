"""Results for other systems: one `Result` of a prediction, and the forms that archives and reports take in."""
