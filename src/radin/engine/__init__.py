"""Engines answer questions: what does the soup of this recipe score, on these examples?"""
