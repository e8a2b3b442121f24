"""The only room that reads SQL for users: queries, plans, pages, counts, exports."""
