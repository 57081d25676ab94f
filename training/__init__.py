"""How the bundled nano checkpoint was made; nothing else imports this package."""
