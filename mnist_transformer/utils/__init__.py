"""Tools that know no model and no data set: devices, files, pictures, the terminal."""
