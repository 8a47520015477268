"""What runs models, with torch and transformers: `qzc calibrate` and `qzc eval`. Nothing else imports this folder's modules."""
