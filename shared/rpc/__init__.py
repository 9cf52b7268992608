"""The KMS's remote procedures: messages, and the prpc transport's encodings (spec kms sections 1 and 2)."""
