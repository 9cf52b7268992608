"""Where deployments are kept: SQLite, DynamoDB with S3, Firestore with Cloud Storage."""
