"""Google's REST APIs over urllib3: a session that bears a token, one mapping of errors, Cloud Storage."""
