"""What Alembic runs: the migrations, in the transaction of the connection that the store gives."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
