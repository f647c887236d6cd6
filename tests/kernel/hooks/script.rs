//! The script of a hook in a [`super::story`]: what it notes, how it tells on us, and what it then does.

use std::path::Path;

/// One hook, as it is written to its files.
#[derive(Default)]
pub struct Hook {
    pub name: String,
    /// (phase, what it does before it tells on us)
    pub first: Vec<(String, String)>,
    /// (phase, what it then does)
    pub does: Vec<(String, String)>,
    pub settings: Vec<String>,
}

impl Hook {
    pub fn script(&self, notes: &Path, disk: &Path) -> String {
        let cases = |list: &[(String, String)]| {
            list.iter().map(|(phase, what)| format!("    {phase}) {what} ;;\n")).collect::<String>()
        };
        format!(
            r#"n={name} d={notes}
echo "$n $1${{HOLDSTILL_REASON:+ $HOLDSTILL_REASON}}" >>$d/told
case $1 in
{first}esac
if [ $1 = thaw ]; then
    read -r before <$d/runs.$n
    case $(cat /proc/${{before:-none}}/stat) in '' | *') Z '*) ;; *) echo "$n OVERLAPS" >>$d/told ;; esac
    # on its own: a write that waits for a thaw cannot be ended
    {{ : >{disk}/.thawed && : >$d/wrote.$$; }} >/dev/null &
    tries=0
    while [ ! -e $d/wrote.$$ ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || {{ echo "$n FROZEN" >>$d/told; break; }}
        sleep 0.01
    done
else
    echo $$ >$d/runs.$n
fi 2>/dev/null
case $1 in
{does}esac
"#,
            name = self.name,
            notes = notes.display(),
            disk = disk.display(),
            first = cases(&self.first),
            does = cases(&self.does),
        )
    }
}
