//! Which files of a room use which others: the arrows that the house rules judge.
//!
//! A room is a module of the crate's root with all that is below it. An arrow leads from the file
//! that names an item to the file that defines it, whatever the path says: `super::`, `self::`,
//! `crate::`, or a name that another file re-exports. A re-export alone is no arrow. Code for tests
//! and fuzzing is not looked at.

#![expect(clippy::wildcard_enum_match_arm, reason = "the parser's enums are not exhaustive")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// The path of a module from the crate's root, without `crate`.
type ModulePath = Vec<String>;

/// One module: what it defines, what it brings in under another path, and what it names.
#[derive(Default)]
struct Module {
    /// The file, relative to `src`.
    file: String,
    children: HashSet<String>,
    defined: HashSet<String>,
    /// Name in this module to the path that it stands for, as written, and whether it is public.
    imported: HashMap<String, (Vec<String>, bool)>,
    /// The modules whose public items are all brought in.
    globs: Vec<Vec<String>>,
    /// Paths that the code names, as written.
    named: HashSet<Vec<String>>,
}

/// The modules of a crate.
#[derive(Default)]
pub struct Crate {
    modules: HashMap<ModulePath, Module>,
}

/// An arrow: the file that uses, the file that is used.
pub type Arrow = (String, String);

impl Crate {
    /// Reads a crate from its folder of sources.
    pub fn read(src: &Path) -> Self {
        let mut all = Self::default();
        let root = ["lib.rs", "main.rs"].map(|name| src.join(name));
        let root = root.into_iter().find(|path| path.exists()).expect("a crate's root");
        all.add_file(src, &root, Vec::new(), src);
        all
    }

    /// `folder` is where the module's children are.
    fn add_file(&mut self, src: &Path, file: &Path, path: ModulePath, folder: &Path) {
        let text = fs::read_to_string(file).expect("a module's file");
        let parsed = syn::parse_file(&text).expect("Rust");
        let name = file.strip_prefix(src).expect("below src").to_string_lossy().into_owned();
        self.add((src, &name, folder), path, &parsed.items);
    }

    fn add(
        &mut self,
        (src, file, folder): (&Path, &str, &Path),
        path: ModulePath,
        items: &[syn::Item],
    ) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            if let syn::Item::Mod(child) = item {
                let name = child.ident.to_string();
                let below = [path.clone(), vec![name.clone()]].concat();
                let child_folder = folder.join(&name);
                match &child.content {
                    Some((_, items)) => self.add((src, file, &child_folder), below, items),
                    None => {
                        let child_file = module_file(folder, &name);
                        self.add_file(src, &child_file, below, &child_folder);
                    }
                }
                module.children.insert(name);
                continue;
            }

            module.note(item);
        }

        self.modules.insert(path, module);
    }

    /// The arrows between files of each room, and the names that they stand for.
    pub fn arrows(&self) -> BTreeMap<String, BTreeMap<Arrow, BTreeSet<String>>> {
        let mut rooms: BTreeMap<String, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
        for (path, module) in &self.modules {
            let Some(room) = path.first() else { continue };
            let imports = module.imported.iter().filter_map(|(name, (target, public))| {
                let is_named = || module.named.iter().any(|named| named.first() == Some(name));
                (!public || is_named()).then_some(target)
            });

            for named in imports.chain(&module.named).chain(&module.globs) {
                let Some(target) = self.defining(path, named, 0) else { continue };
                let other = &self.modules[&target];
                if target.first() == Some(room) && other.file != module.file {
                    let arrow = (module.file.clone(), other.file.clone());
                    let name = named.last().expect("a name").clone();
                    rooms.entry(room.clone()).or_default().entry(arrow).or_default().insert(name);
                }
            }
        }

        rooms
    }

    /// The module that defines what `named` means in the module `at`; `None` for what is not of
    /// this crate.
    fn defining(&self, at: &[String], named: &[String], depth: usize) -> Option<ModulePath> {
        // Two modules may re-export each other.
        if depth > 20 {
            return None;
        }
        let (first, rest) = named.split_first()?;
        match first.as_str() {
            "crate" => return self.below(&[], rest, depth),
            "self" => return self.below(at, rest, depth),
            "super" => {
                let (_, above) = at.split_last()?;
                let as_self = [vec!["self".to_owned()], rest.to_vec()].concat();
                let path = if rest.first().is_some_and(|r| r == "super") { rest } else { &as_self };
                return self.defining(above, path, depth + 1);
            }
            _ => {}
        }

        let module = self.modules.get(at)?;
        let is_here = module.children.contains(first)
            || module.imported.contains_key(first)
            || module.defined.contains(first);
        is_here.then(|| self.below(at, named, depth))?
    }

    /// The module that defines the item at `rest` below the module `at`.
    fn below(&self, at: &[String], rest: &[String], depth: usize) -> Option<ModulePath> {
        let module = self.modules.get(at)?;
        let Some((first, further)) = rest.split_first() else { return Some(at.to_vec()) };

        if module.children.contains(first) {
            let child = [at.to_vec(), vec![first.clone()]].concat();
            // A function and a module may have one name.
            if !further.is_empty() || !module.defined.contains(first) {
                return self.below(&child, further, depth);
            }
        }

        if module.defined.contains(first) {
            return Some(at.to_vec());
        }
        if let Some((target, _)) = module.imported.get(first) {
            let target = [target.clone(), further.to_vec()].concat();
            return self.defining(at, &target, depth + 1);
        }

        module.globs.iter().find_map(|glob| {
            let target = self.defining(at, glob, depth + 1)?;
            (target != at).then(|| self.below(&target, rest, depth + 1))?
        })
    }
}

impl Module {
    fn note(&mut self, item: &syn::Item) {
        if let syn::Item::Use(import) = item {
            let public = !matches!(import.vis, syn::Visibility::Inherited);
            self.note_use(&import.tree, &mut Vec::new(), public);
            return;
        }
        if let Some(name) = name_of(item) {
            self.defined.insert(name);
        }
        let mut names = Names { named: &mut self.named };
        names.visit_item(item);
    }

    fn note_use(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>, public: bool) {
        match tree {
            syn::UseTree::Path(part) => {
                prefix.push(part.ident.to_string());
                self.note_use(&part.tree, prefix, public);
                prefix.pop();
            }
            syn::UseTree::Name(part) => {
                let name = part.ident.to_string();
                let is_self = name == "self";
                let target = if is_self { prefix.clone() } else { [&prefix[..], &[name]].concat() };
                let name = target.last().expect("a name").clone();
                self.imported.insert(name, (target, public));
            }
            syn::UseTree::Rename(part) => {
                let target = [&prefix[..], &[part.ident.to_string()]].concat();
                self.imported.insert(part.rename.to_string(), (target, public));
            }
            syn::UseTree::Glob(_) => self.globs.push(prefix.clone()),
            syn::UseTree::Group(group) => {
                for part in &group.items {
                    self.note_use(part, prefix, public);
                }
            }
        }
    }
}

/// Collects the paths that code names.
struct Names<'a> {
    named: &'a mut HashSet<Vec<String>>,
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if !is_for_tests(&call.attrs) {
            syn::visit::visit_expr_call(self, call);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.named.insert(path.segments.iter().map(|part| part.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }

    /// `pub(super)` names nothing that it uses.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        let mut inner = Module::default();
        inner.note_use(&import.tree, &mut Vec::new(), false);
        self.named.extend(inner.imported.into_values().map(|(target, _)| target));
        self.named.extend(inner.globs);
    }

    /// The arguments of a macro are no paths to the parser: take them as expressions if they are.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let list = syn::punctuated::Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated;
        if let Ok(arguments) = call.parse_body_with(list) {
            for argument in &arguments {
                syn::visit::visit_expr(&mut Names { named: self.named }, argument);
            }
        }
        self.visit_path(&call.path);
    }
}

/// The file of a module that is declared by its name alone.
fn module_file(folder: &Path, name: &str) -> PathBuf {
    let flat = folder.join(format!("{name}.rs"));
    if flat.exists() { flat } else { folder.join(name).join("mod.rs") }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| matches!(word, "test" | "fuzzing"))
        }
        _ => false,
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// The groups of files that can reach each other: circles.
pub fn circles<'a>(arrows: impl Iterator<Item = &'a Arrow>) -> Vec<BTreeSet<String>> {
    let mut reach: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in arrows {
        reach.entry(from).or_default().insert(to);
    }

    // Rooms are small: the plain closure will do.
    loop {
        let mut grown = false;
        let files: Vec<_> = reach.keys().copied().collect();
        for file in files {
            let further: BTreeSet<_> =
                reach[file].iter().filter_map(|next| reach.get(next)).flatten().copied().collect();
            let known = reach.get_mut(file).expect("a key");
            let before = known.len();
            known.extend(further);
            grown |= known.len() > before;
        }
        if !grown {
            break;
        }
    }

    let mut found: BTreeSet<BTreeSet<String>> = BTreeSet::new();
    for (file, reached) in &reach {
        if reached.contains(file) {
            let mutual = |other: &&&str| reach.get(**other).is_some_and(|back| back.contains(file));
            found.insert(reached.iter().filter(mutual).map(|other| (*other).to_owned()).collect());
        }
    }
    found.into_iter().collect()
}
