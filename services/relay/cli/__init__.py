"""What a person types after `keypulse-relay --config FILE`, but for serving."""
